package blobs_test

import (
	"testing"

	"hearthline/blobs"
	"hearthline/blobs/blobstest"
	"hearthline/blobs/s3test"
)

func TestBucket(t *testing.T) {
	server := s3test.Start(t)
	for name, prefix := range map[string]string{"without a prefix": "", "under a prefix": "a/prefix of-it"} {
		t.Run(name, func(t *testing.T) {
			blobstest.Run(t, func(t *testing.T) func() blobs.Store {
				bucket := server.NewBucket()
				return func() blobs.Store { return openBucket(t, bucket, prefix, server.Settings(server.URL)) }
			})
		})
	}
}

func openBucket(t testing.TB, bucket, prefix string, s blobs.S3) *blobs.Bucket {
	t.Helper()
	b, err := blobs.OpenS3(bucket, prefix, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}
