package apache

import (
	"context"
	"fmt"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Allow gives a user rights (ACLs), each written as "KIND NAME OPERATION,OPERATION…": "topic raw read,describe". A name
// that ends in * stands for all that begin so. The user is one of Security.Users, or CN=name of a Certificate.
func (c *Cluster) Allow(ctx context.Context, user string, rights ...string) error {
	req := kmsg.NewPtrCreateACLsRequest()
	for _, right := range rights {
		words := strings.Fields(right)
		if len(words) != 3 {
			return fmt.Errorf("kafka: right %q: want KIND NAME OPERATIONS", right)
		}
		kind, err := kmsg.ParseACLResourceType(words[0])
		if err != nil {
			return fmt.Errorf("kafka: right %q: %w", right, err)
		}
		for name := range strings.SplitSeq(words[2], ",") {
			operation, err := kmsg.ParseACLOperation(name)
			if err != nil {
				return fmt.Errorf("kafka: right %q: %w", right, err)
			}
			one := kmsg.NewCreateACLsRequestCreation()
			one.ResourceType, one.ResourceName, one.ResourcePatternType = kind, words[1], kmsg.ACLResourcePatternTypeLiteral
			if prefix, ok := strings.CutSuffix(words[1], "*"); ok && prefix != "" {
				one.ResourceName, one.ResourcePatternType = prefix, kmsg.ACLResourcePatternTypePrefixed
			}
			one.Principal, one.Host, one.Operation, one.PermissionType = "User:"+user, "*", operation, kmsg.ACLPermissionTypeAllow
			req.Creations = append(req.Creations, one)
		}
	}
	cl, err := c.Admin()
	if err != nil {
		return err
	}
	defer cl.Close()
	res, err := req.RequestWith(ctx, cl)
	if err != nil {
		return fmt.Errorf("kafka: rights of %s: %w", user, err)
	}
	for _, r := range res.Results {
		if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
			return fmt.Errorf("kafka: rights of %s: %w", user, err)
		}
	}
	return nil
}
