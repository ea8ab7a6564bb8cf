"""What an optimizer is made of, and the stages that follow from it."""
