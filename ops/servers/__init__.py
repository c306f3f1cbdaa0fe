"""Real servers on loopback for tests, demo and bench: started without root's help, gone without a trace."""
