"""What a quantized engine costs and what it saves, measured and shown on one page."""
