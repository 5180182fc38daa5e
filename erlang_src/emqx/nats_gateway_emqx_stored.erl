%% The settings that EMQX stores for the plugin's page have every key of the page.
%%
%% EMQX keeps them in one file on each node, for all versions of the plugin, and never adds a key to
%% it. The dashboard's form cannot show settings that lack a key: it shows the defaults of all keys,
%% and *Save Changes* would store these, without logins. So a change that lacks a key is refused,
%% and the start of the plugin adds the keys that an older version did not have.
-module(nats_gateway_emqx_stored).

-export([check_change/2]).
-export([complete/0]).

-include_lib("kernel/include/logger.hrl").

%% For a PUT, EMQX asks the plugin on each node (`on_config_changed/2'), and then writes the file and
%% its copy in memory. It is given this time to write.
-define(WRITE_MS, 1000).

%% Checks a change before EMQX stores it. No change is accepted while another process runs
%% `complete/0'.
%%
%% If EMQX knows no older settings and the plugin does not run, EMQX may have found these settings
%% in the file. It stores them whatever we answer, and the next start completes them.
-spec check_change(Old :: map(), New :: map()) ->
    {ok, nats_gateway_emqx_page:settings()} | completed | {error, Text :: binary()}.
check_change(Old, New) ->
    case get(?MODULE) of
        undefined ->
            MustBeComplete = is_running() orelse map_size(Old) > 0,
            in_turn(fun() -> check_change(New, MustBeComplete, missing(New)) end);
        %% This process is completing the settings, and they are still those that it has read.
        Old ->
            completed;
        _ ->
            {error, <<"the stored settings have changed">>}
    end.

%% A nested turn would end the turn that this process has.
in_turn(Fun) -> nats_gateway_nif_loader:with(Fun).

check_change(_, true, Missing = [_ | _]) ->
    Keys = iolist_to_binary(lists:join(<<", ">>, Missing)),
    {error,
        <<Keys/binary, ": must be there, because a change replaces all settings. ",
            "Send every key, as GET returns them">>};
check_change(New, _, _) ->
    case nats_gateway_emqx_page:check(New) of
        {ok, Settings} ->
            is_running() orelse persistent_term:put(?MODULE, now_ms()),
            {ok, Settings};
        {error, Text} ->
            {error, Text}
    end.

is_running() -> whereis(nats_gateway_emqx_takeover) =/= undefined.

missing(Settings) -> nats_gateway_emqx_page:keys() -- maps:keys(Settings).

%% Called when the plugin starts, before anything reads the stored settings. Settings that are not
%% valid are left as they are: nobody is let in with them, and the plugin's health says why. If the
%% settings cannot be completed, the plugin works all the same.
-spec complete() -> ok.
complete() ->
    try
        in_turn(fun() ->
            ok = await_change(),
            complete(nats_gateway_emqx_page:stored())
        end)
    catch
        _:Reason -> not_completed(nats_gateway_guard:shape(Reason))
    end.

%% A change may have been accepted just before, and EMQX may be writing it.
await_change() ->
    Accepted = persistent_term:get(?MODULE, none),
    _ = persistent_term:erase(?MODULE),
    case Accepted of
        none -> ok;
        At -> timer:sleep(max(0, min(?WRITE_MS, At + ?WRITE_MS - now_ms())))
    end.

complete({ok, Stored}) ->
    case {missing(Stored), nats_gateway_emqx_page:check(Stored)} of
        {Missing = [_ | _], {ok, _}} -> complete(Missing, Stored);
        _ -> ok
    end;
complete({error, _}) ->
    ok.

%% EMQX calls `on_config_changed/2' in this process, with the settings that it has stored by then.
complete(Missing, Stored) ->
    _ = put(?MODULE, Stored),
    try emqx_plugins:update_config(nats_gateway_emqx_page:name_vsn(), completed(Stored)) of
        ok ->
            ?LOG_NOTICE(#{msg => "stored_plugin_settings_completed", added => Missing}),
            ok;
        {error, Reason} ->
            not_completed(nats_gateway_guard:shape(Reason))
    after
        erase(?MODULE)
    end.

%% The package has the defaults in the form in which EMQX stores settings.
completed(Stored) ->
    {ok, Defaults} = hocon:load(filename:join(code:priv_dir(nats_gateway), "config.hocon")),
    maps:merge(Defaults, Stored).

not_completed(Reason) ->
    ?LOG_WARNING(#{
        msg => "stored_plugin_settings_not_completed",
        reason => Reason,
        consequence => "the dashboard's form shows defaults instead of the stored settings",
        hint => "send every setting with PUT"
    }),
    ok.

now_ms() -> erlang:monotonic_time(millisecond).
