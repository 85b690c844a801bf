"""`har app`: a local web page that predicts uploaded videos; the entry point is `serving.serve`."""
