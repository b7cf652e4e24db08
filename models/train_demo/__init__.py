"""How the demonstration model was made: `python -m models.train_demo.train --help`. Not needed to run the pipeline."""
