// What this peer believes of the registry, and for how long (docs/protocol.md: Check a document, How long a document is
// believed).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"sync"
	"time"
)

const (
	offlineLimit = 3600            // seconds for which a document is believed after its last signed confirmation
	poll         = time.Second     // between two questions for changes: a revocation takes effect that soon
	cooldown     = 5 * time.Second // until a document that could not be had is asked for again
	patience     = time.Second     // a caller with a document that is believed waits no longer for the registry
)

var errNotFound = errors.New("404")

// Registry is the trust store. Its lock is never held over a call to the registry: documents that are held are believed
// while the registry hangs.
type Registry struct {
	URL, Pin string
	Now      func() int64
	Get      func(url string, headers map[string]string) (string, error)
	Headers  func(method, target string) (map[string]string, error) // signs a call to the registry

	lock    sync.Mutex
	root    *Root
	newest  Checkpoint
	held    map[string]*held     // by path
	failed  map[string]time.Time // by path: when it could not be had
	revoked map[string]bool      // kids: no later document brings one back
	polled  time.Time
	flights map[string]*flight // by path: what the registry is asked for now
}

// flight is one question to the registry, for all callers that want the answer.
type flight struct {
	ended chan struct{}
	soon  <-chan struct{} // closed at the end too, or when the patience is over
	err   error           // set before the end
}

// held is a document that is believed.
type held struct {
	claims               Claims
	keys                 map[string]*ListedKey
	subject              string
	covered, confirmedAt int64
	changedAt            int64     // the entry that changed the subject since; 0 for none
	asOf                 time.Time // when the registry was last asked for it, or whether it has changed
}

// newRegistry trusts the registry at that URL whose root key has the thumbprint `pin`.
func newRegistry(url, pin string) *Registry {
	return &Registry{
		URL: url, Pin: pin, Get: httpGet, Now: func() int64 { return time.Now().Unix() },
		held: map[string]*held{}, failed: map[string]time.Time{}, revoked: map[string]bool{}, flights: map[string]*flight{},
	}
}

// Domain is the trust domain.
func (r *Registry) Domain() (string, error) {
	root, err := r.rootDocument(false)
	if err != nil {
		return "", err
	}
	return root.Domain, nil
}

// Key finds a service's key by its kid. Refuses with unknown_key, revoked_key or trust_unavailable. A kid that is not
// held may be new: it waits for the next question for changes, so that unknown kids cost the registry nothing.
func (r *Registry) Key(kid string) (*ListedKey, error) {
	owner, _, err := splitKid(kid)
	if err != nil {
		return nil, err
	}
	_, service, _ := splitServiceID(owner)
	arrived := time.Now()
	r.lock.Lock()
	defer r.lock.Unlock()
	for {
		found, err := r.believed(keySet, "/v1/services/"+service+"/jwks.jwt", owner)
		switch {
		case err != nil:
			return nil, err
		case r.revoked[kid]:
			return nil, refuse("revoked_key", "%s", kid)
		case found.keys[kid] != nil:
			return found.keys[kid], nil
		case !found.asOf.Before(arrived):
			return nil, refuse("unknown_key", "%s", kid)
		case !r.polled.Before(arrived):
			return nil, refuse("trust_unavailable", "%s: the registry did not answer", kid)
		}
		wait(r, time.After(time.Until(r.polled.Add(poll))))
	}
}

// Policy is the operators' policy for a service, nil where there is none.
func (r *Registry) Policy(id string) (map[string]any, error) {
	_, service, err := splitServiceID(id)
	if err != nil {
		return nil, err
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	found, err := r.believed(policy, "/v1/services/"+service+"/policy.jwt", id)
	if err != nil {
		return nil, err
	}
	allowed, _ := found.claims["policy"].(map[string]any)
	return allowed, nil
}

// Settings are the domain's: which services may mint transaction tokens, and which scopes are derived.
func (r *Registry) Settings() (Claims, error) {
	domain, err := r.Domain()
	if err != nil {
		return nil, err
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	found, err := r.believed(settings, "/v1/domain.jwt", domain)
	if err != nil {
		return nil, err
	}
	return found.claims, nil
}

// read gives a document that passes every check, and its keys. It must cover so many entries.
func (r *Registry) read(kind *Kind, compact, subject string, covered int64) (Claims, map[string]*ListedKey, error) {
	claims, root, err := r.readSigned(kind, compact)
	if err != nil {
		return nil, nil, err
	}
	head, err := readCheckpoint(claims.text("checkpoint"), root.Domain, root.LedgerKeys)
	if err != nil {
		return nil, nil, err
	}
	seq, size := claims.number("seq"), claims.number("seq")
	if kind != changes {
		size = claims.number("head")
	}
	if head.Size != size || seq > size {
		return nil, nil, refuse("document_malformed", "the checkpoint is of another size")
	}
	var keys map[string]*ListedKey
	if kind == keySet {
		keys, err = keysOf(claims)
	}
	switch {
	case err != nil:
		return nil, nil, err
	case claims.text("sub") != subject:
		return nil, nil, refuse("document_wrong_subject", "%q", claims.text("sub"))
	case head.Size < covered:
		return nil, nil, refuse("document_rolled_back", "older than what was seen")
	}
	_, service, _ := splitServiceID(subject)
	for _, key := range keys {
		if err := checkAdmission(key, service, head); err != nil {
			return nil, nil, err
		}
	}
	if err := r.follow(head, claims); err != nil {
		return nil, nil, err
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	for kid := range keys {
		if r.revoked[kid] {
			return nil, nil, refuse("document_revived_key", "%s", kid)
		}
	}
	for _, each := range claims.list("revoked") {
		if key, ok := each.(map[string]any); ok {
			each = key["kid"]
		}
		r.revoked[text(each)] = true
	}
	return claims, keys, nil
}

func (r *Registry) readSigned(kind *Kind, compact string) (Claims, *Root, error) {
	root, err := r.rootDocument(false)
	if err != nil {
		return nil, nil, err
	}
	claims, err := readDocument(kind, compact, root.Signers, root.Domain, r.Now())
	if codeOf(err) == "document_unknown_signer" { // the registry may have a new signing key
		if root, err = r.rootDocument(true); err != nil {
			return nil, nil, err
		}
		claims, err = readDocument(kind, compact, root.Signers, root.Domain, r.Now())
	}
	return claims, root, err
}

func (r *Registry) rootDocument(again bool) (*Root, error) {
	r.lock.Lock()
	known := r.root
	r.lock.Unlock()
	if known != nil && !again {
		return known, nil
	}
	compact, err := r.Get(r.URL+"/.well-known/peerseal-registry", nil)
	if err != nil {
		return nil, err
	}
	found, err := readRegistryKeys(compact, r.Pin, r.Now())
	if err != nil {
		return nil, err
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	if r.root != nil && found.Version < r.root.Version {
		return nil, refuse("document_rolled_back", "version %d", found.Version)
	}
	r.root = found
	return found, nil
}

// follow checks that the ledger only grows: the newer of two checkpoints begins with the older one. A checkpoint that
// another document brought meanwhile is compared too.
func (r *Registry) follow(head *Checkpoint, claims Claims) error {
	for {
		r.lock.Lock()
		newest := r.newest
		r.lock.Unlock()
		if err := r.compare(head, &newest, claims); err != nil {
			return err
		}
		if r.advance(newest.Size, head) {
			return nil
		}
	}
}

func (r *Registry) compare(older, newer *Checkpoint, claims Claims) error {
	if older.Size > newer.Size {
		older, newer = newer, older
	}
	if older.Size == 0 {
		return nil
	}
	proof, err := r.proof(older, newer, claims)
	if err != nil {
		return err
	}
	return checkConsistency(older, newer, proof)
}

// advance takes a head that was compared with the newest one, if that was of this size and still is the newest.
func (r *Registry) advance(compared int64, head *Checkpoint) bool {
	r.lock.Lock()
	defer r.lock.Unlock()
	if r.newest.Size != compared {
		return false
	}
	if head.Size > compared {
		r.newest = *head
	}
	return true
}

func (r *Registry) proof(older, newer *Checkpoint, claims Claims) ([]hash, error) {
	if older.Size == newer.Size {
		return nil, nil
	}
	if offered, given := claims["proof"]; given && claims.number("since") == older.Size {
		return decodeProof(offered)
	}
	answer, err := r.Get(fmt.Sprintf("%s/ledger/proof?from=%d&to=%d", r.URL, older.Size, newer.Size), nil)
	if err != nil {
		return nil, err
	}
	var found struct{ Proof any }
	if err := json.Unmarshal([]byte(answer), &found); err != nil {
		return nil, err
	}
	return decodeProof(found.Proof)
}

// believed gives the document at that path, while a signed time confirms it. The caller holds the lock, which is open
// while the registry is asked.
func (r *Registry) believed(kind *Kind, path, subject string) (*held, error) {
	if asked := r.share("changes", len(r.held) > 0 && time.Since(r.polled) >= poll, r.takeChanges); asked != nil {
		wait(r, asked.soon)
	}
	found := r.held[path]
	due := (found == nil || found.changedAt > 0) && time.Since(r.failed[path]) >= cooldown
	asked := r.share(path, due, func() error { return r.fetch(kind, path, subject) })
	switch {
	case asked == nil:
	case found != nil:
		wait(r, asked.soon)
	default:
		wait(r, asked.ended)
		if errors.Is(asked.err, errNotFound) {
			return nil, refuse("unknown_key", "the registry knows no such service")
		}
	}
	if found == nil && r.held[path] != nil {
		r.confirm(kind, path, subject)
	}
	found = r.held[path]
	if found == nil || r.Now() > found.confirmedAt+offlineLimit || r.Now() >= found.claims.number("exp") {
		return nil, refuse("trust_unavailable", "%s: no signed time confirms it", path)
	}
	return found, nil
}

// confirm asks about a document that was fetched just now. It is signed seldom: where that is long ago, did it change
// since? The caller holds the lock, which is open while the registry is asked.
func (r *Registry) confirm(kind *Kind, path, subject string) {
	if r.Now() <= r.held[path].confirmedAt+offlineLimit/2 {
		return
	}
	wait(r, r.share("changes", true, r.takeChanges).ended)
	if r.held[path].changedAt > 0 {
		wait(r, r.share(path, true, func() error { return r.fetch(kind, path, subject) }).ended)
	}
}

// share gives the question of that name, which is asked now if it is due: once for all callers. The caller holds the lock.
func (r *Registry) share(name string, due bool, ask func() error) *flight {
	if found := r.flights[name]; found != nil || !due {
		return found
	}
	soon, end := context.WithTimeout(context.Background(), patience)
	asked := &flight{ended: make(chan struct{}), soon: soon.Done()}
	r.flights[name] = asked
	go func() {
		defer end()
		defer close(asked.ended)
		if asked.err = ask(); asked.err != nil {
			log.Printf("%s: %v", name, asked.err) // what is held is believed for a while
		}
		r.lock.Lock()
		defer r.lock.Unlock()
		delete(r.flights, name)
	}()
	return asked
}

// wait opens the lock until the channel is closed or has a value.
func wait[T any](r *Registry, channel <-chan T) {
	r.lock.Unlock()
	defer r.lock.Lock()
	<-channel
}

// fetch asks for a document that is not held, or has changed, and holds it.
func (r *Registry) fetch(kind *Kind, path, subject string) error {
	var before held
	r.lock.Lock()
	if found := r.held[path]; found != nil {
		before = *found
	}
	r.lock.Unlock()
	fresh, err := r.fetched(kind, path, subject, &before)
	r.lock.Lock()
	defer r.lock.Unlock()
	if err != nil {
		r.failed[path] = time.Now()
		return err
	}
	r.held[path] = fresh
	return nil
}

func (r *Registry) fetched(kind *Kind, path, subject string, before *held) (*held, error) {
	target, asOf := path, time.Now()
	if before.changedAt > 0 {
		target = fmt.Sprintf("%s?seq=%d", path, before.changedAt)
	}
	var headers map[string]string
	if kind == policy && r.Headers != nil { // a restricted policy is told to its own service only
		var err error
		if headers, err = r.Headers("GET", target); err != nil {
			return nil, err
		}
	}
	compact, err := r.Get(r.URL+target, headers)
	if err != nil {
		return nil, err
	}
	claims, keys, err := r.read(kind, compact, subject, before.changedAt)
	if err != nil {
		return nil, err
	}
	if claims.number("seq") < before.claims.number("seq") { // 0 where none was held
		return nil, refuse("document_rolled_back", "%s", path)
	}
	return &held{
		claims: claims, keys: keys, subject: subject, covered: claims.number("head"), confirmedAt: claims.number("iat"),
		asOf: asOf,
	}, nil
}

// startPoll notes the time of a question for changes, and gives it with the number of entries that the oldest document
// covers.
func (r *Registry) startPoll() (time.Time, int64) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.polled = time.Now()
	since := int64(-1)
	for _, each := range r.held {
		if since < 0 || each.covered < since {
			since = each.covered
		}
	}
	return r.polled, since
}

// takeChanges asks which services have changed since the oldest document that is held.
func (r *Registry) takeChanges() error {
	root, err := r.rootDocument(false)
	if err != nil {
		return err
	}
	asOf, since := r.startPoll()
	compact, err := r.Get(fmt.Sprintf("%s/v1/changes?since=%d", r.URL, since), nil)
	if err != nil {
		return err
	}
	claims, _, err := r.read(changes, compact, root.Domain, 0)
	if err != nil {
		return err
	}
	seq, reset, changed := claims.number("seq"), claims["reset"] == true, claims.lastChanges()
	changed[root.Domain] = changed[root.Domain+"/registry"] // for the registry's keys, and the domain's settings
	if reset || changed[root.Domain] > 0 {
		if _, err := r.rootDocument(true); err != nil {
			log.Printf("registry keys: %v", err)
		}
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	for _, each := range r.held {
		switch {
		case each.covered > seq: // the list is older than this document
		case reset || claims.number("since") > each.covered:
			each.changedAt = seq
		case changed[each.subject] > each.covered:
			each.changedAt = changed[each.subject] // all clients ask for this entry
		default:
			each.covered, each.confirmedAt = seq, max(each.confirmedAt, claims.number("iat"))
			if asOf.After(each.asOf) {
				each.asOf = asOf
			}
		}
	}
	return nil
}

var client = &http.Client{
	Timeout:       5 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func httpGet(url string, headers map[string]string) (string, error) {
	request, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return "", err
	}
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 8<<20+1))
	switch {
	case answer.StatusCode == 404:
		return "", errNotFound
	case answer.StatusCode != 200:
		return "", fmt.Errorf("the registry answered %d", answer.StatusCode)
	}
	return string(body), err
}
