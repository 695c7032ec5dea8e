"""What is done after a loss: verify, restore, repair, declare a new history."""
