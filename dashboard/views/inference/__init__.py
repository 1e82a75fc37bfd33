"""The page Inference: `address` (what is shown), `weights` (the model), `form` (what is measured), `result`."""
