"""What a recipe would need on so many devices, found out without any of them."""
