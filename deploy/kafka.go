package deploy

import (
	"fmt"
	"path"
	"strings"
)

// kafkaSecrets sees to it that every role finds what kafka.tls and kafka.sasl name: the password in its environment,
// from a Secret, and the files in a mount.
func (r *renderer) kafkaSecrets() {
	k := &r.plan.Spec.Kafka
	if k.SASL != nil {
		r.passwordVariable(r.there("kafka.sasl.password_env", k.SASL.PasswordEnv))
		r.mounted("sasl", "password_file", k.SASL.PasswordFile)
	}
	if k.TLS != nil {
		r.mounted("tls", "ca", k.TLS.CA)
		r.mounted("tls", "certificate", k.TLS.Certificate)
		r.mounted("tls", "key", k.TLS.Key)
	}
}

// there is a setting as it is where it runs, never what its variable is on the machine that renders.
func (r *renderer) there(path, here string) string {
	for _, use := range r.plan.Spec.Env {
		if use.Path != path {
			continue
		}
		if v, ok := r.env[use.Name]; ok {
			return v.Text
		}
		return use.Default
	}
	return here
}

// passwordVariable wants a variable to come from a Secret, for every role.
func (r *renderer) passwordVariable(name string) {
	if name == "" {
		return
	}
	at := r.plan.Spec.Kafka.At("sasl")
	hint := fmt.Sprintf("add deploy.env.%s: {secret: NAME, key: KEY}", name)
	if _, given := r.env[name]; !given && r.target == "compose" {
		r.env[name] = Value{Secret: "env", Key: name} // from the shell or the file .env
	}
	for _, one := range r.roles {
		switch v, given := r.envOf(one)[name]; {
		case !given:
			r.find(at, "kafka.sasl.password_env", hint, "the variable %s has no value for %s", name, one.node)
			return
		case v.Text != "":
			r.find(at, "kafka.sasl.password_env", hint, "the variable %s holds a password, and stands in the file as text", name)
			return
		}
	}
}

// mounted wants a file to be in a mount of every role.
func (r *renderer) mounted(section, key, here string) {
	name := "kafka." + section + "." + key
	file := r.there(name, here)
	if file == "" {
		return
	}
	at := r.plan.Spec.Kafka.At(section)
	if !path.IsAbs(file) {
		r.find(at, name, "write its path in the container, such as /etc/hearthline/kafka/"+path.Base(file), "%s is %s, which is relative", name, file)
		return
	}
	for _, one := range r.roles {
		found := false
		for _, m := range one.run.Mounts {
			found = found || strings.HasPrefix(path.Clean(file), path.Clean(m.At)+"/")
		}
		if !found {
			r.find(at, name, fmt.Sprintf("add to deploy.defaults.mounts: {secret: NAME, at: %s}", path.Dir(file)), "no mount of %s holds %s (%s)", one.node, file, name)
			return
		}
	}
}
