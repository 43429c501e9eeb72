"""What a judge of answers is worth on held-out data: numbers as JSON, tables for the terminal, one offline page."""
