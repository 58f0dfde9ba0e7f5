# bash completion for rekernel(8)                              -*- shell-script -*-
# SPDX-License-Identifier: GPL-2.0-or-later

_rekernel_kernels() {
    local directory
    for directory in /usr/lib/modules/*/modules.dep; do
        directory=${directory%/modules.dep}
        [[ -e $directory ]] && printf '%s\n' "${directory##*/}"
    done
}

_rekernel_units() {
    systemctl list-units --type=service --no-legend --plain --full 2>/dev/null |
        while read -r unit _; do printf '%s\n' "$unit"; done
}

_rekernel_ids() {
    local directory
    for directory in /var/lib/rekernel/history/*/report.json; do
        directory=${directory%/report.json}
        [[ -e $directory ]] && printf '%s\n' "${directory##*/}"
    done
}

_rekernel() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local verb='' word options=''
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [[ $word != -* ]]; then
            verb=$word
            break
        fi
    done
    COMPREPLY=()
    case $previous in
    --memory)
        mapfile -t COMPREPLY < <(compgen -W 'auto region image' -- "$current")
        return
        ;;
    --carry | --restart)
        mapfile -t COMPREPLY < <(compgen -W "$(_rekernel_units)" -- "$current")
        return
        ;;
    --html)
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        return
        ;;
    --region | --store | --max-blackout)
        return
        ;;
    esac
    case $verb in
    '') options='setup check plan upgrade abort status history report --help --version --verbose' ;;
    setup) options='--help --json --region --store --undo --dry-run --yes' ;;
    check) options='--all --help --json --memory' ;;
    plan) options='--help --json --carry --restart --memory' ;;
    upgrade) options='--help --json --carry --restart --memory --yes --dry-run --max-blackout' ;;
    abort | status | history) options='--help --json' ;;
    report) options='--help --json --all --html' ;;
    esac
    if [[ $current != -* ]]; then
        case $verb in
        check | plan | upgrade) options+=" $(_rekernel_kernels)" ;;
        report) options+=" $(_rekernel_ids)" ;;
        esac
    fi
    mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current")
}

complete -F _rekernel rekernel
