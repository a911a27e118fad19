"""From the table of probes to what people read: curves, files, sentences."""
