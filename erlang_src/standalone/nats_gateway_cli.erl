%% The command `bin/nats_gateway': reads the settings and starts the standalone gateway. If it
%% cannot start, it says why in one line.
-module(nats_gateway_cli).

-export([main/0]).
-export([format_report/1]).

-define(USAGE, <<
    "usage: nats_gateway [-c FILE] [--upstream mqtt[s]://HOST:PORT] [--listen ADDRESS:PORT]\n"
    "                    [--check] [--version]\n"
    "  -c FILE     settings in TOML (docs/standalone.md has the table); without it the defaults\n"
    "  --upstream  the MQTT 5 broker, instead of upstream.url\n"
    "  --listen    one tcp listener, instead of those of the file\n"
    "  --check     read the settings, and end\n"
    "  --version   say the version, and end\n"
>>).

%% Exit codes of sysexits(3): usage, configuration, and what others must provide.
-define(EX_USAGE, 64).
-define(EX_UNAVAILABLE, 69).
-define(EX_CONFIG, 78).

-define(TLS_APPS, [asn1, public_key, ssl]).

-spec main() -> no_return() | ok.
main() ->
    try
        start(arguments(init:get_plain_arguments(), #{}))
    catch
        throw:{stop, Status, Text} -> fail(Status, Text)
    end.

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
    run(Arguments, settings(Arguments)).

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
    arguments(Rest, Acc#{upstream => list_to_binary(Url)});
arguments(["--listen", Address | Rest], Acc) ->
    arguments(Rest, Acc#{listen => list_to_binary(Address)});
arguments(["--check" | Rest], Acc) ->
    arguments(Rest, Acc#{check => true});
arguments([Unknown | _], _) ->
    throw({stop, ?EX_USAGE, ["unknown option ", Unknown, "; --help lists them"]}).

settings(Arguments) ->
    Tables = override(Arguments, tables(Arguments)),
    case nats_gateway_file:parse(Tables) of
        {ok, Config = #{listeners := Listeners}} ->
            [check_files(Name, Tls, Arguments) || #{name := Name, tls := Tls} <- Listeners],
            Config;
        {error, Text} ->
            throw({stop, ?EX_CONFIG, [source(Arguments), Text]})
    end.

check_files(Name, Tls, Arguments) ->
    case nats_gateway_tls:load(Tls) of
        {ok, _} -> ok;
        {error, Problem} -> throw({stop, ?EX_CONFIG, wrong_file(Name, Problem, Arguments)})
    end.

wrong_file(Name, Problem, Arguments) ->
    [Type, Id] = binary:split(Name, <<":">>),
    [
        source(Arguments),
        ["listeners.", Type, $., Id, ".ssl_options."],
        nats_gateway_tls:format_problem(Problem)
    ].

tables(#{file := File}) ->
    case file:read_file(File) of
        {ok, Toml} ->
            case nats_gateway_mqtt_nif:toml(Toml) of
                {ok, Tables} -> Tables;
                {error, Text} -> throw({stop, ?EX_CONFIG, [File, ": ", Text]})
            end;
        {error, Reason} ->
            throw({stop, ?EX_CONFIG, [File, ": ", file:format_error(Reason)]})
    end;
tables(_) ->
    #{}.

override(Arguments, Tables) ->
    WithUpstream =
        case Arguments of
            #{upstream := Url} -> put_in([<<"upstream">>, <<"url">>], Url, Tables);
            #{} -> Tables
        end,
    case Arguments of
        #{listen := Address} ->
            Listener = #{<<"tcp">> => #{<<"default">> => #{<<"bind">> => Address}}},
            put_in([<<"listeners">>], Listener, WithUpstream);
        #{} ->
            WithUpstream
    end.

put_in([Key], Value, Table) ->
    Table#{Key => Value};
put_in([Key | Keys], Value, Table) ->
    case maps:get(Key, Table, #{}) of
        Inner when is_map(Inner) -> Table#{Key => put_in(Keys, Value, Inner)};
        %% left as it is, because the check of the settings names the problem
        _ -> Table
    end.

source(#{file := File}) -> [File, ": "];
source(_) -> "".

run(#{check := true}, _) ->
    erlang:halt(0);
run(Arguments, Config = #{log_level := Level, upstream := Upstream, listeners := Listeners}) ->
    UseTls = lists:any(fun uses_tls/1, [Upstream | Listeners]),
    Loading = load_modules([crypto] ++ [App || App <- ?TLS_APPS, UseTls]),
    reachable(Upstream),
    ok = logger:set_primary_config(level, error),
    %% When the application ends, the process ends too, and its service manager starts it again.
    {ok, _} = application:ensure_all_started(nats_gateway, permanent),
    ok = await(load_modules([nats_gateway])),
    ok = await(Loading),
    Ready = [with_connection(Listener, Config) || Listener <- Listeners],
    #{monitor := Monitor} = Config,
    ok = nats_gateway_standalone_monitor:count_clients(Config),
    %% What the first client does is in the log, too.
    _ = log_to_stderr(Level),
    lists:foreach(fun(Listener) -> listen(Listener, Arguments) end, Ready),
    ok = nats_gateway_control:start(#{
        settings => #{config => Config, listeners => Ready},
        read => fun() -> read_again(Arguments) end
    }),
    ok = nats_gateway_standalone_monitor:answer_requests(Config),
    ok = open_monitor(Monitor, Arguments),
    nats_gateway_service_manager:ready(),
    await(load_modules([kernel, stdlib])).

read_again(Arguments) ->
    try settings(Arguments) of
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
        _ = code:ensure_modules_loaded(lists:filter(fun is_for_standalone/1, Names))
    end).

is_for_standalone(nats_gateway_host_emqx) -> false;
is_for_standalone(Module) -> not lists:prefix("nats_gateway_emqx", atom_to_list(Module)).

await({Pid, Monitor}) ->
    receive
        {'DOWN', Monitor, process, Pid, _} -> ok
    end.

reachable(#{host := Host, port := Port, tls := Tls, connect_timeout := Timeout}) ->
    Tls =:= none orelse readable(Tls),
    case nats_gateway_transport:connect({Host, Port}, Tls, Timeout) of
        {ok, Socket} ->
            nats_gateway_transport:close(Socket);
        {error, {options, Option}} ->
            wrong_option(option(Option));
        {error, Reason} ->
            throw(
                {stop, ?EX_UNAVAILABLE, [
                    "no MQTT broker at ",
                    nats_gateway_address:format({Host, Port}),
                    " (",
                    nats_gateway_upstream:explain(Reason),
                    "): start one there, or name another with --upstream or upstream.url"
                ]}
            )
    end.

readable(Tls) ->
    {ok, _} = application:ensure_all_started(ssl),
    lists:foreach(
        fun({Name, File}) ->
            case file:read_file(File) of
                {ok, _} ->
                    ok;
                {error, Reason} ->
                    wrong_option([atom_to_list(Name), ": ", File, ": ", file:format_error(Reason)])
            end
        end,
        [Option || {Name, _} = Option <- Tls, lists:member(Name, [cacertfile, certfile, keyfile])]
    ).

-spec wrong_option(iodata()) -> no_return().
wrong_option(Text) -> throw({stop, ?EX_CONFIG, ["upstream.ssl_options.", Text]}).

%% The value of the option may be a password.
option(Option) when is_tuple(Option), is_atom(element(1, Option)) ->
    [atom_to_list(element(1, Option)), ": cannot be used"];
option(_) ->
    "cannot be used".

with_connection(Listener = #{name := Name, authentication_timeout := Timeout}, Config) ->
    Listener#{
        connection => #{
            host => nats_gateway_host_mqtt,
            config => maps:without([listeners, monitor], Config#{authentication_timeout := Timeout}),
            listener => Name
        }
    }.

listen(Listener = #{name := Name, bind := {Address, Port}}, Arguments) ->
    case nats_gateway_listener:start(Listener) of
        ok ->
            io:format("nats_gateway: listening on ~ts~n", [nats_gateway_address:format({Address, Port})]);
        {error, {tls, Problem}} ->
            %% The file has changed since it was checked.
            throw({stop, ?EX_CONFIG, wrong_file(Name, Problem, Arguments)});
        {error, Reason} ->
            throw(
                {stop, ?EX_UNAVAILABLE, [
                    source(Arguments),
                    "cannot listen on ",
                    nats_gateway_address:format({Address, Port}),
                    " (",
                    inet:format_error(Reason),
                    "): choose another with --listen or listeners.tcp"
                ]}
            )
    end.

open_monitor(undefined, _) ->
    ok;
open_monitor(Bind, Arguments) ->
    Address = nats_gateway_address:format(Bind),
    case nats_gateway_standalone_monitor:open(Bind) of
        ok ->
            io:format("nats_gateway: monitoring on http://~ts~n", [Address]);
        {error, Reason} ->
            Why = nats_gateway_upstream:explain(Reason),
            Text = [source(Arguments), "cannot listen on ", Address, " (", Why, "): choose another monitor.bind"],
            throw({stop, ?EX_UNAVAILABLE, Text})
    end.

log_to_stderr(Level) ->
    %% The journal has the time of each line.
    Beginning =
        case nats_gateway_service_manager:is_journal() of
            true -> [priority];
            false -> [time, " "]
        end,
    ok = logger:remove_handler(default),
    ok = logger:add_handler(default, logger_std_h, #{
        config => #{type => standard_error},
        formatter =>
            {logger_formatter, #{
                single_line => true,
                report_cb => fun ?MODULE:format_report/1,
                template => Beginning ++ [level, " ", msg, "\n"]
            }},
        filters => [
            {progress, {fun logger_filters:progress/2, stop}},
            {priority, {fun with_priority/2, []}}
        ]
    }),
    logger:set_primary_config(level, Level).

with_priority(Event = #{level := Level, meta := Meta}, _) ->
    Event#{meta := Meta#{priority => nats_gateway_service_manager:priority(Level)}}.

%% First comes what happened, then what is known of it.
-spec format_report(logger:report()) -> {io:format(), [term()]}.
format_report(Report = #{msg := Msg}) ->
    Known = lists:sort(maps:to_list(maps:remove(msg, Report))),
    {lists:flatten(["~ts" | [" ~ts=~ts" || _ <- Known]]), [
        Msg | lists:append([[Key, text(Value)] || {Key, Value} <- Known])
    ]};
format_report(Report) ->
    logger:format_report(Report).

text(Value) when is_binary(Value); is_atom(Value) -> Value;
text(Value) -> io_lib:format("~0p", [Value]).

-spec fail(pos_integer(), iodata()) -> no_return().
fail(Status, Text) ->
    Beginning =
        case nats_gateway_service_manager:is_journal() of
            true -> nats_gateway_service_manager:priority(error);
            false -> ""
        end,
    io:format(standard_error, "~snats_gateway: ~ts~n", [Beginning, Text]),
    erlang:halt(Status).
