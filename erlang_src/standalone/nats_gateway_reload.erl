%% What is different between the settings that are in use and those that were read again, in the
%% words of the file.
-module(nats_gateway_reload).

-export([changed/2]).
-export([certificates/1]).
-export([problem/2]).

-export_type([report/0]).

-type report() :: #{
    %% settings outside of the listeners
    changed := [binary()],
    listeners_opened := [Name :: binary()],
    listeners_closed := [Name :: binary()],
    listeners_changed := [Name :: binary()],
    %% the listeners whose certificates were read again
    certificates := [Name :: binary()],
    problems := [binary()]
}.

%% What is no setting of its own, or is made anew at each start.
-define(NO_SETTINGS, [server_id, secret, listeners]).

-spec changed(nats_gateway_config:config(), nats_gateway_config:config()) -> [binary()].
changed(Old, New) ->
    lists:usort(
        lists:append([
            names(Key, Value, maps:get(Key, New))
         || {Key, Value} <- maps:to_list(maps:without(?NO_SETTINGS, Old)), Value =/= maps:get(Key, New)
        ])
    ).

names(monitor, _, _) ->
    [<<"monitor.bind">>];
names(control, _, _) ->
    [<<"control.socket">>];
names(login, _, _) ->
    [<<"logins">>];
names(Key, Old, New) when Key =:= upstream; Key =:= clientinfo_override; Key =:= devices ->
    [
        unicode:characters_to_binary([atom_to_list(Key), $., inner(Key, Inner)])
     || Inner <- maps:keys(maps:merge(Old, New)),
        maps:find(Inner, Old) =/= maps:find(Inner, New)
    ];
names(Key, _, _) ->
    [atom_to_binary(Key)].

inner(upstream, Key) when Key =:= host; Key =:= port -> "url";
inner(upstream, tls) -> "ssl_options";
inner(_, Key) -> atom_to_list(Key).

-spec certificates([nats_gateway_listener:listener()]) -> [Name :: binary()].
certificates(Listeners) -> [Name || #{name := Name, tls := _} <- Listeners].

%% Why something stays as it is.
-spec problem(
    {listener, nats_gateway_listener:listener()} | {monitor | control, term()} | log, Reason :: term()
) -> binary().
problem({listener, #{name := Name}}, {tls, Problem}) ->
    unicode:characters_to_binary(nats_gateway_listener:certificate_problem(Name, Problem));
problem({listener, #{name := Name, bind := Bind}}, Reason) ->
    cannot([nats_gateway_listener:setting(Name), ".bind"], Bind, Reason);
problem({monitor, Bind}, Reason) ->
    cannot("monitor.bind", Bind, Reason);
problem({control, Path}, Reason) ->
    unicode:characters_to_binary(["control.socket: ", Path, ": ", nats_gateway_ctl_socket:explain(Reason)]);
problem(log, Text) ->
    unicode:characters_to_binary(Text).

cannot(Setting, Bind, Reason) ->
    unicode:characters_to_binary([
        Setting,
        ": cannot listen on ",
        nats_gateway_address:format(Bind),
        " (",
        nats_gateway_upstream:explain(Reason),
        ")"
    ]).
