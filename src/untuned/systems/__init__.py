"""Systems of the field that are not optimizers, each in a room of its own: what runs around or beside an optimizer."""
