"""Parts that several pages share: the form of an experiment, results of a run, dialogs, buttons, messages."""
