"""The policy and its episodes for workers and agents on other machines."""
