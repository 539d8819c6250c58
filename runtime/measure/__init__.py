"""What a quantized engine costs and what it saves: paired and set measures, latency, bytes, and the report that joins them."""
