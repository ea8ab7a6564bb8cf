"""What checks an optimizer: naive float64 transcriptions of the papers."""
