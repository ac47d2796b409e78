"""`pixel-perception bench`: what the runtime reaches on this machine, beside what it is compared with."""
