"""How the processes of a run find each other, share the model and agree."""
