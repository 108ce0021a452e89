package deploy

import "hearthline/blobs"

// checkpointsInBucket says whether checkpoints are kept in a bucket where the pipeline runs: then roles need no
// volume for them, and share no other.
func (r *renderer) checkpointsInBucket() bool {
	return blobs.IsShared(r.valueThere("checkpoint.to", r.plan.Spec.CheckpointStore.To))
}

// checkpointEndpoint is where that bucket's server is.
func (r *renderer) checkpointEndpoint() string {
	if at := r.valueThere("checkpoint.s3.endpoint", r.plan.Spec.CheckpointStore.S3.Endpoint); at != "" {
		return at
	}
	return "https://s3.amazonaws.com"
}

// valueThere is the value at a path where the pipeline runs: here is what it is on the machine that renders, which
// counts only where no variable decides it.
func (r *renderer) valueThere(path, here string) string {
	for _, use := range r.plan.Spec.Env {
		if use.Path != path {
			continue
		}
		if v := r.env[use.Name].Text; v != "" {
			return v
		}
		return use.Default
	}
	return here
}
