"""Tables and figures as the paper lays them out, and the numbers that it prints."""
