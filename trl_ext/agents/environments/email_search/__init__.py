"""Search a mailbox and answer a question from it: an index, the environment, its questions and its players."""
