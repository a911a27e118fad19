"""Parameters as one vector: names, inner products, sharding."""
