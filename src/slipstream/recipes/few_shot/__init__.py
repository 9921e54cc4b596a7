"""Meta-learning on few-shot tasks, with its engine: MAML, ANIL, BOIL and Meta-ticket."""
