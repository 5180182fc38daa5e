%% The command `bin/nats_gateway': reads the settings and starts the standalone gateway. If it
%% cannot start, it says why in one line.
-module(nats_gateway_cli).

-export([main/0]).

-include("nats_gateway_exit.hrl").

-define(USAGE, <<
    "usage: nats_gateway [-c FILE] [--upstream mqtt[s]://HOST:PORT] [--listen ADDRESS:PORT]\n"
    "                    [--check] [--version]\n"
    "       nats_gateway check [OPTION]...    try the broker, and say what clients will have\n"
    "       nats_gateway ctl COMMAND          ask the gateway that runs: status, clients, kick, reload, drain\n"
    "  -c FILE     settings in TOML (docs/standalone.md has the table); without it the defaults\n"
    "  --upstream  the MQTT 5 broker, instead of upstream.url\n"
    "  --listen    one tcp listener, instead of those of the file\n"
    "  --check     read the settings, and end\n"
    "  --version   say the version, and end\n"
    "`nats_gateway check --help` and `nats_gateway ctl --help` say more.\n"
>>).

%% Settings of the gateway that no connection needs.
-define(NOT_OF_CONNECTIONS, [listeners, monitor, control, log_level, log_format, log_file]).

-define(TLS_APPS, [asn1, public_key, ssl]).

%% Modules of the runtime that the gateway never calls, not even to write an error into the log:
%% those of the shell, of compilation and archives, of tables and logs on disk, and of SCTP.
-define(NEVER_CALLED, [
    dets,
    dets_server,
    dets_sup,
    dets_utils,
    dets_v9,
    digraph,
    digraph_utils,
    disk_log,
    disk_log_1,
    disk_log_server,
    disk_log_sup,
    edlin,
    edlin_expand,
    erl_compile,
    erl_expand_records,
    erl_lint,
    erl_tar,
    escript,
    file_sorter,
    gen_sctp,
    group,
    inet_sctp,
    inet6_sctp,
    log_mf_h,
    ms_transform,
    otp_internal,
    peer,
    pool,
    qlc,
    qlc_pt,
    random,
    shell,
    shell_default,
    shell_docs,
    slave,
    sofs,
    user_drv,
    wrap_log_reader,
    zip
]).

-spec main() -> no_return() | ok.
main() ->
    try
        main(init:get_plain_arguments())
    catch
        throw:{stop, Status, Text} -> fail(Status, Text)
    end.

main(["ctl" | Arguments]) -> nats_gateway_ctl:main(Arguments);
main(["check" | Arguments]) -> nats_gateway_broker_check:main(Arguments);
main(Arguments) -> start(arguments(Arguments, #{})).

start(#{help := true}) ->
    ok = file:write(standard_io, ?USAGE),
    erlang:halt(0);
start(#{version := true}) ->
    _ = application:load(nats_gateway),
    {ok, Version} = application:get_key(nats_gateway, vsn),
    io:format("nats_gateway ~s~n", [Version]),
    erlang:halt(0);
start(Arguments) ->
    has_crypto(),
    Config = nats_gateway_settings:read(Arguments),
    ok = nats_gateway_log:prefer(Config),
    run(Arguments, Config).

%% The only library of the system that not every system has.
has_crypto() ->
    case code:ensure_loaded(crypto) of
        {module, _} ->
            ok;
        {error, _} ->
            throw(
                {stop, ?EX_UNAVAILABLE, [
                    "Erlang's crypto cannot be loaded: is OpenSSL's libcrypto installed? ",
                    "(the package libssl3 of Debian 12)"
                ]}
            )
    end.

arguments([], Acc) ->
    Acc;
arguments([Help | _], _) when Help =:= "-h"; Help =:= "--help" -> #{help => true};
arguments(["--version" | _], _) ->
    #{version => true};
arguments(["-c", File | Rest], Acc) ->
    arguments(Rest, Acc#{file => File});
arguments(["--upstream", Url | Rest], Acc) ->
    arguments(Rest, Acc#{upstream => nats_gateway_settings:argument(Url)});
arguments(["--listen", Address | Rest], Acc) ->
    arguments(Rest, Acc#{listen => nats_gateway_settings:argument(Address)});
arguments(["--check" | Rest], Acc) ->
    arguments(Rest, Acc#{check => true});
arguments([Option], _) when Option =:= "-c"; Option =:= "--upstream"; Option =:= "--listen" ->
    throw({stop, ?EX_USAGE, [Option, " needs a value; --help lists the options"]});
arguments([Unknown | _], _) ->
    throw({stop, ?EX_USAGE, ["unknown option ", Unknown, "; --help lists them"]}).

run(#{check := true}, _) ->
    erlang:halt(0);
run(Arguments, Config = #{upstream := Upstream, listeners := Listeners}) ->
    UseTls = lists:any(fun uses_tls/1, [Upstream | Listeners]),
    Loading = load_modules([crypto] ++ [App || App <- ?TLS_APPS, UseTls]),
    ok = nats_gateway_reach:check(Upstream),
    ok = logger:set_primary_config(level, error),
    %% When the application ends, the process ends too, and its service manager starts it again.
    {ok, _} = application:ensure_all_started(nats_gateway, permanent),
    ok = await(load_modules([nats_gateway])),
    ok = await(Loading),
    Ready = [with_connection(Listener, Config) || Listener <- Listeners],
    #{monitor := Monitor, control := Control} = Config,
    ok = nats_gateway_standalone_monitor:count_clients(Config),
    %% What the first client does is in the log, too.
    ok = begin_log(Config, Arguments),
    lists:foreach(fun(Listener) -> listen(Listener, Arguments) end, Ready),
    ok = nats_gateway_control:start(#{
        settings => #{config => Config, listeners => Ready},
        read => fun() -> read_again(Arguments) end,
        run => fun nats_gateway_ctl_commands:run/1
    }),
    ok = nats_gateway_standalone_monitor:answer_requests(Config),
    ok = open_monitor(Monitor, Arguments),
    ok = open_control(Control, Arguments),
    nats_gateway_service_manager:ready(),
    await(load_modules([kernel, stdlib])).

read_again(Arguments) ->
    try nats_gateway_settings:read(Arguments) of
        Config = #{listeners := Listeners} ->
            Ready = [with_connection(Listener, Config) || Listener <- Listeners],
            {ok, #{config => Config, listeners => Ready}}
    catch
        throw:{stop, _, Text} -> {error, Text}
    end.

uses_tls(#{tls := Tls}) -> Tls =/= none;
uses_tls(#{}) -> false.

%% The runtime loads a module when it is first called, which needs a file descriptor. If there is
%% none left, code that runs for the first time would crash. Loading takes a third of a start. So
%% our own modules are loaded in parallel with the rest of the start, and those of the runtime when
%% clients are already served.
load_modules(Applications) ->
    spawn_monitor(fun() ->
        _ = [application:load(Application) || Application <- Applications],
        Modules = [application:get_key(Application, modules) || Application <- Applications],
        Names = lists:append([Names || {ok, Names} <- Modules]),
        _ = code:ensure_modules_loaded(lists:filter(fun is_needed/1, Names))
    end).

is_needed(nats_gateway_host_emqx) -> false;
%% of other commands
is_needed(nats_gateway_ctl) -> false;
is_needed(nats_gateway_broker_check) -> false;
is_needed(nats_gateway_broker_report) -> false;
is_needed(Module) ->
    not (lists:prefix("nats_gateway_emqx", atom_to_list(Module)) orelse
        lists:member(Module, ?NEVER_CALLED)).

await({Pid, Monitor}) ->
    receive
        {'DOWN', Monitor, process, Pid, _} -> ok
    end.

with_connection(Listener = #{name := Name, authentication_timeout := Timeout}, Config) ->
    Listener#{
        connection => #{
            host => nats_gateway_host_mqtt,
            config => maps:without(?NOT_OF_CONNECTIONS, Config#{authentication_timeout := Timeout}),
            listener => Name
        }
    }.

listen(Listener = #{name := Name, bind := Bind}, Arguments) ->
    Address = nats_gateway_address:format(Bind),
    case nats_gateway_listener:start(Listener) of
        ok ->
            Report = #{listener => Name, address => list_to_binary(Address)},
            nats_gateway_log:say(listening, Report, ["listening on ", Address]);
        {error, {tls, Problem}} ->
            %% The file has changed since it was checked.
            throw({stop, ?EX_CONFIG, nats_gateway_settings:wrong_file(Name, Problem, Arguments)});
        {error, Reason} ->
            throw(
                {stop, ?EX_UNAVAILABLE, [
                    nats_gateway_settings:source(Arguments),
                    "cannot listen on ",
                    Address,
                    " (",
                    inet:format_error(Reason),
                    "): choose another with --listen or ",
                    nats_gateway_listener:setting(Name),
                    ".bind"
                ]}
            )
    end.

open_monitor(undefined, _) ->
    ok;
open_monitor(Bind, Arguments) ->
    Address = nats_gateway_address:format(Bind),
    case nats_gateway_standalone_monitor:open(Bind) of
        ok ->
            Text = ["monitoring on http://", Address],
            nats_gateway_log:say(monitoring, #{address => list_to_binary(Address)}, Text);
        {error, Reason} ->
            Why = nats_gateway_upstream:explain(Reason),
            Source = nats_gateway_settings:source(Arguments),
            Text = [Source, "cannot listen on ", Address, " (", Why, "): choose another monitor.bind"],
            throw({stop, ?EX_UNAVAILABLE, Text})
    end.

open_control(Path, Arguments) ->
    case nats_gateway_ctl_socket:open(Path, fun nats_gateway_ctl_commands:run/1) of
        ok ->
            ok;
        {error, Reason} ->
            Problem = nats_gateway_reload:problem({control, Path}, Reason),
            throw({stop, ?EX_UNAVAILABLE, [nats_gateway_settings:source(Arguments), Problem]})
    end.

begin_log(Config, Arguments) ->
    case nats_gateway_log:start(Config) of
        ok -> ok;
        {error, Text} -> throw({stop, ?EX_CONFIG, [nats_gateway_settings:source(Arguments), Text]})
    end.

-spec fail(pos_integer(), iodata()) -> no_return().
fail(Status, Text) ->
    ok = nats_gateway_log:fail(Status, Text),
    erlang:halt(Status).
