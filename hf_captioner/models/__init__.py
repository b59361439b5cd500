"""All that travels to the Hub with a captioner: flat files that import nothing but their siblings."""
