"""What runs with no model hub: a tiny model and its arithmetic task, SmolLM2 from a wheel, reasoning-gym tasks."""
