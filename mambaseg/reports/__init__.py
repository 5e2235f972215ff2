"""Tables, figures and HTML reports of runs."""
