"""Per-example gradients: the engines that compute them and the statistics that are kept of them."""
