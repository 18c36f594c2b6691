"""Programs of the checkout, one per job: what ``nasrec JOB`` runs. Any launcher starts them."""
