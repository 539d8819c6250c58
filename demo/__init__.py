"""The embedded model: small weights in a diffusers folder and the scripts that made it."""
