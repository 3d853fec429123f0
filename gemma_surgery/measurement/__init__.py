"""How fast a model runs here, and how close that is to what the machine's memory allows."""
