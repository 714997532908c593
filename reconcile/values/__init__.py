"""Values: source and lake compared at one position, while writes go on."""
