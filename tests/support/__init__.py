"""What tests share: tiny models and ensembles, sample results, the loopback Hub, doubles."""
