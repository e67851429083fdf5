"""The networks of the mission, and the programs that train them."""
