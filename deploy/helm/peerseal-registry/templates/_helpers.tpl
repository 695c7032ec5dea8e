{{- define "registry.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects the pods of one component: (list $ "registry"). */}}
{{- define "registry.selector" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "registry.labels" -}}
{{ include "registry.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end -}}

{{- define "registry.podLabels" -}}
{{ include "registry.selector" . }}
{{- with (index . 0).Values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "registry.image" -}}
image: {{ .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end -}}

{{/* What all pods share: the user, no token of the API server, where they run. */}}
{{- define "registry.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Pods of a component over zones and nodes: (list $ "registry"). */}}
{{- define "registry.spread" -}}
{{- $of := . -}}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "registry.selector" $of | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end -}}

{{- define "registry.hardened" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* Settings of nodes and of the owner's Jobs. */}}
{{- define "registry.commonEnv" -}}
- name: REGISTRY_HOME
  value: /var/lib/peerseal
- name: REGISTRY_TRUST_DOMAIN
  value: {{ .Values.trustDomain | quote }}
{{- with .Values.publicUrls }}
- name: REGISTRY_PUBLIC_URLS
  value: {{ join "," . }}
{{- end }}
- name: REGISTRY_DATABASE_URL_FILE
  value: /secrets/database/{{ .Values.database.key }}
- name: REGISTRY_SIGNING_KEY_FILE
  value: /secrets/keys/signing-key.pem
- name: REGISTRY_LEDGER_KEY_FILE
  value: /secrets/keys/ledger-key.pem
- name: REGISTRY_SEALING_KEY_FILE
  value: /secrets/keys/sealing.key
{{- if .Values.keys.passphraseSecret }}
- name: REGISTRY_KEY_PASSPHRASE_FILE
  value: /secrets/passphrase/passphrase
{{- end }}
{{- end -}}

{{- define "registry.commonMounts" -}}
- {name: home, mountPath: /var/lib/peerseal}
- {name: tmp, mountPath: /tmp}
- {name: keys, mountPath: /secrets/keys, readOnly: true}
- {name: database, mountPath: /secrets/database, readOnly: true}
{{- if .Values.keys.passphraseSecret }}
- {name: passphrase, mountPath: /secrets/passphrase, readOnly: true}
{{- end }}
{{- end -}}

{{/* Volumes of nodes and of the owner's Jobs: (list $ NAME), with the Secret of the database's URL. */}}
{{- define "registry.commonVolumes" -}}
{{- $values := (index . 0).Values -}}
- {name: home, emptyDir: {medium: Memory, sizeLimit: 64Mi}}  # init writes an operator token there
- {name: tmp, emptyDir: {sizeLimit: 64Mi}}
{{ include "registry.secretVolume" (list "keys" $values.keys.secret "signing-key.pem" "ledger-key.pem" "sealing.key") }}
{{ include "registry.secretVolume" (list "database" (index . 1) $values.database.key) }}
{{- with $values.keys.passphraseSecret }}
{{ include "registry.secretVolume" (list "passphrase" . "passphrase") }}
{{- end }}
{{- end -}}

{{/* A volume of these files of a Secret, for the pod's group: (list NAME SECRET FILE…). */}}
{{- define "registry.secretVolume" -}}
- name: {{ index . 0 }}
  secret:
    secretName: {{ index . 1 | quote }}
    defaultMode: 0440
    items:
      {{- range slice . 2 }}
      - {key: {{ . | quote }}, path: {{ . | quote }}}
      {{- end }}
{{- end -}}

{{/* The rules of REGISTRY_OIDC_FILE; empty where no service account and no further issuer may join. */}}
{{- define "registry.oidcRules" -}}
{{- $rules := list -}}
{{- with .Values.serviceAccounts -}}
{{- if .services -}}
{{- $subjects := dict -}}
{{- range $account, $service := .services -}}
{{- $_ := set $subjects (printf "system:serviceaccount:%s" (replace "/" ":" $account)) $service -}}
{{- end -}}
{{- $rule := dict "issuer" .issuer "ca_file" "ca.crt" "services" $subjects -}}
{{- with .audience }}{{ $_ := set $rule "audience" . }}{{ end -}}
{{- $rules = append $rules $rule -}}
{{- end -}}
{{- $rules = concat $rules .issuers -}}
{{- end -}}
{{- if $rules }}{{ toPrettyJson $rules }}{{ end -}}
{{- end -}}
