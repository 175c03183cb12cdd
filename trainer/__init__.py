"""Examples to row and weight updates: models, losses, the worker, and metrics of served scores."""
