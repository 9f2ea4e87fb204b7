"""What is saved, how it is verified, and which checkpoint a run resumes from."""
