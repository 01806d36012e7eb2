"""The pages of the documentation; `docs.tools` makes what is generated in them."""
