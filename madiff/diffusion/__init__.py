"""The diffusion core: tensors in, tensors out; it knows neither tasks nor environments."""
