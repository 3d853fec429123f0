"""Finding the recipe that costs least under a budget."""
