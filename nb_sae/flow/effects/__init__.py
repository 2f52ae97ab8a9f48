"""What a flow is worth on data and in the running model: groups, deactivation, steering, splicing."""
