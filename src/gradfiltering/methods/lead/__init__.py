"""LEAD (arXiv 2505.07437): rows are selected while the target trains on them."""
