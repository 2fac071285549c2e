"""ModHiFi: which components of a trained network carry its predictions, and what to do with those that do not."""
