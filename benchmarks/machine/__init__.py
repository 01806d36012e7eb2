"""What a machine can do, measured before anything else: copies, products, launches, barriers."""
