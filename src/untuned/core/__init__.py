"""Everything that is not a method: declarations, the place, the engine, totals and state."""
