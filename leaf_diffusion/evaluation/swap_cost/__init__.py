"""What a swapped encoder costs, stage by stage."""
