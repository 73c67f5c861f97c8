"""What a weight update is: one kind, one file. Roles with shapes, and one formula for ΔW, free of torch."""
