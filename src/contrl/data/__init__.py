"""Where rows come from: files, chat formats, batches, and the Countdown generator."""
